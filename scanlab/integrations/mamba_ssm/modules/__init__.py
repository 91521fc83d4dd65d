"""Modules that stand in for those of `mamba_ssm.modules`."""
