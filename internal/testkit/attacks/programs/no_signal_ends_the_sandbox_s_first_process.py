# no signal ends the sandbox's first process
# refused only with namespaces
for n in range(1, 65):
    try: os.kill(1, n)
    except PermissionError: pass
os.getppid() == 1 or broken("orphaned")
