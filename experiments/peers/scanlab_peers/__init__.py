"""Selective scans that others publish, or that others' compilers make of a few lines, as scanlab backends.

    pip install -c constraints.txt -e experiments/peers
    python experiments/against_peers.py

Each file holds one peer, used the way its own documentation uses it. All take float32 tensors forward in time;
the other directions are made by reversing tensors.
"""
