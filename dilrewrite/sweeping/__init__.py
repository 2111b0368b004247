"""Many models: which they are, who answers for each (this machine, hosts, a Dask scheduler), and one report for all."""
