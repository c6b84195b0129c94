"""The kernel of a notebook that ``make run`` executes: a copy of a process that has imported what each notebook with a model imports first.

Importing it takes three to four seconds a notebook. Whoever opens the notebooks in Jupyter gets ordinary kernels.
"""

import os
import sys
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from helpers.benchmark.job import LIBRARIES

MODULES = (*LIBRARIES, "tools.kernel", "ipykernel.kernelapp", "pandas", "matplotlib.figure", "matplotlib.backends.backend_agg")
NAME = "copies"


def use(copies):
    """Let jupyter_client start the kernels of this process from ``copies`` (a process.Copies of MODULES) from now on."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[NAME] = EntryPoint(NAME, "tools.kernel:Copied", factory.GROUP_NAME)
    factory.default_provisioner_name = NAME
    Copied.copies = copies


class Copied(LocalProvisioner):
    """Starts the command of a Python kernel as a copy, where there is a process to copy."""

    copies = None

    async def launch_kernel(self, cmd, **options):
        """See LocalProvisioner."""
        if cmd[1:3] != ["-m", "ipykernel_launcher"] or not self.copies.ready():
            return await super().launch_kernel(cmd, **options)
        self.cwd = options.get("cwd") or os.getcwd()
        self.process = self.copies.start("tools.kernel.be", {"arguments": cmd[3:], "folder": str(self.cwd), "variables": options.get("env") or {}})
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def be(job):
    """In the copy: become the kernel."""
    from ipykernel.kernelapp import launch_new_instance

    os.chdir(job["folder"])
    os.environ.update(job["variables"])
    sys.path.remove("")  # the course's folder until now, as that of ``python -c``
    sys.argv = ["ipykernel_launcher", *job["arguments"], f"--IPKernelApp.parent_handle={os.getppid()}"]  # it ends with that process
    launch_new_instance()
