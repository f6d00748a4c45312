"""What proves that a store cannot lie: faults in system calls, power cuts, tampering, and an oracle that judges what is left.

`shim` builds and arms the C library that counts, fails, kills and records system calls. `server` is a process, warm by what
`warming` does, that runs commands in forked children under such faults; `client` talks to it. `scenarios` lists the commands
and the states that they start from, `observing` reads everything of a store with every refusal noted, `oracle` judges what a
fault left. `campaigns` are the experiments, each a function of (n, seed); `power` builds what a power cut leaves; `tampering`
and `metadata` damage files; `sharing` runs threads and first writers.
"""
