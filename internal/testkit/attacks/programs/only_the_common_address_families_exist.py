# only the common address families exist
for family in (16, 17, 38, 40, 21, 31, 44):
    refused(f"family {family}", lambda: socket.socket(family, socket.SOCK_RAW), errno.EPERM)
    sys_refused(f"family {family} with the upper half set", 41, family | 1 << 32, 3, 0)
sys_refused("family 2 with the upper half set", 41, 2 | 1 << 32, 1, 0)
refused("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), errno.EPERM)
