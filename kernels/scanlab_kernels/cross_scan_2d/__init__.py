"""Implementations of the scan of a feature map in four directions, one file each, simplest first.

    rank  backend                  difference from the one before
    0     cross_scan_2d_torch      four sequences out of the map, one step at a time; the reference in float64
    1     cross_scan_2d_composed   rows and columns by two bidirectional scans of `selective_scan.native`
    2     cross_scan_2d_native     the map read where it lies, along every direction, by one C++ op

`problem` has the glossary, `op` the hard problems.
"""
