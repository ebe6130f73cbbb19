"""Named settings as YAML, shipped with the package: laptop (the defaults), smoke (seconds), gpu (large).

Flow:    [configs/*.yaml] -> config_io.load -> config.RunConfig
"""
