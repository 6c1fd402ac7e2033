"""Commands for those who look after nodes: configuration, version, installation, completion."""
