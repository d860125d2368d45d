"""The offline store and what lies in it: registry, cuts, archive, dead letters, partials, index of log files, leases."""
