"""What serving a device to another process takes, whatever the protocol: what vhost-user and vfio-user have in common.

``sockets`` (Unix sockets at a path), ``framing`` (a stream cut into messages with their fds), ``stream`` (a socket read so), ``terminal``
and ``reports`` (what goes wrong), ``waiting``, ``peers`` (who is served, one after the other), ``program`` (until SIGTERM).
"""
