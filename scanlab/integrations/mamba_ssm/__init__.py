"""Drop-in for `mamba_ssm` and `causal_conv1d`: code that imports them runs on scanlab, without CUDA.

    import scanlab.integrations.mamba_ssm as drop_in

    drop_in.install()

Afterwards the packages can be imported whether they are installed or not. Installed ones are wrapped: tensors on
the CPU are served by scanlab, all others go where they went before. Missing ones, the compiled modules
`selective_scan_cuda` and `causal_conv1d_cuda` included, are served by scanlab. A name that scanlab lacks is absent to
code that has a fallback; to code that has none it raises when it is used. `scanlab run script.py` does all this for a
script as it is.

Source: state-spaces/mamba@e9594ce, Dao-AILab/causal-conv1d@0d2252d, hustvl/Vim@dd0358a with its forks of both.
"""

from scanlab.integrations.mamba_ssm.import_hook import install, uninstall

__all__ = ["install", "uninstall"]
