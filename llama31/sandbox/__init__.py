"""Programs that a model wrote, run where they can harm nothing; without such a place none is run.

    sandbox = Sandbox(SandboxLimits(wall_seconds=10), readable=(Path("/opt/packages"),))     # from isolation, limits
    outcome = sandbox.run(["python3", "-I", "-S", "a.py"], {"a.py": source}, stdin="3\\n")
    outcome.passed, outcome.reason, outcome.returncode, outcome.stdout, outcome.stderr, outcome.seconds

`probe.probe()` says what works on this machine; where something is missing, `Sandbox(...)` raises `SandboxUnavailable`
with the remedy. `run` blocks its thread: `workers.Workers` does many at once, `await`ed or in order.

Imports: config. Starts other people's programs (bubblewrap, prlimit, setpriv), and is the only package that may run
what a model wrote.
Offers: limits (SandboxLimits, Execution), isolation (Sandbox, and ProgramRunner, what callers need of one), probe,
workers, cgroups (groups of a sandbox's own, and how much memory there is); beneath them running, bubblewrap (its
command line), homes (which no sandbox shows), seccomp (system calls that are refused) and usage (what the processes
inside take).
"""
