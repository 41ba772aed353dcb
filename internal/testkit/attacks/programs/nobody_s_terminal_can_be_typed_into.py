# nobody's terminal can be typed into
for command in (0x5412, 0x541c):
    for upper in (0, 1 << 32, -1 << 32):
        sys_refused(f"ioctl {command:#x}", 16, 0, command | upper, b"x")
