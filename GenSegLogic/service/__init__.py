"""The engine behind HTTP: a process of its own, so that a window never freezes and a crash never takes Slicer down.

The client's half needs the standard library and numpy only::

    from GenSegLogic.service import ServiceProcess

    service = ServiceProcess.start(device="auto", log_path="genseg-service.log")
    client = service.wait()                      # or service.poll() from a timer, until it returns a client
    results = client.run("nodules", {"steps": 8}, {"image": volume})
    service.stop()

From a timer, so that no tick lasts longer than some 50 ms::

    submitting = client.submitting("nodules", {"steps": 8}, {"image": volume})   # next() until it is used up
    job = submitting.job
    state = job.poll()                           # until state.finished; job.cancel() at any time
    fetching = job.fetching()                    # next() until it is used up
    results = fetching.results
"""

from .client import Client, Job, JobState, ServiceGone
from .process import ServiceProcess

__all__ = ["Client", "Job", "JobState", "ServiceGone", "ServiceProcess"]
