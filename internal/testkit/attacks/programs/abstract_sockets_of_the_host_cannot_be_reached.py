# abstract sockets of the host cannot be reached
s = socket.socket(socket.AF_UNIX)
refused("abstract socket", lambda: s.connect("\0" + SOCKET), errno.EPERM)
