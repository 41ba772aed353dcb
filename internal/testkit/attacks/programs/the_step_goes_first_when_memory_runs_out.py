# the step goes first when memory runs out
# refused without a sandbox too
if read("/proc/self/oom_score_adj").strip() != b"1000": broken("score", read("/proc/self/oom_score_adj"))
