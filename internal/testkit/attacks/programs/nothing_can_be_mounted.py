# nothing can be mounted
sys_refused("mount", 165, b"none", b"/tmp", b"kizen-no-such-type", 0, 0)
sys_refused("umount", 166, b"/kizen-nowhere", 2)
sys_refused("pivot_root", 155, b"/kizen-nowhere", b"/kizen-nowhere")
sys_refused("chroot", 161, b"/kizen-nowhere")
for number in (428, 429, 430, 431, 432, 433, 442): sys_refused(f"new mount interface {number}", number, -1, -1, -1, -1, -1)
sys_refused("open_by_handle_at", 304, -1, -1, 0)
