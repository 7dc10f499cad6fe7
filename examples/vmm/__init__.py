"""A small virtual machine monitor on asyncio: one guest, three devices, two CPUs to choose from.

Run it as ``python -m examples.vmm``.
"""
