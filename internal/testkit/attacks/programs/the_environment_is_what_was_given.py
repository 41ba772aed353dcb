# the environment is what was given
# refused without a sandbox too
with open("/proc/self/environ") as f: executed_with = f.read().split("\0")
for names in set(os.environ), {entry.split("=")[0] for entry in executed_with if entry}:
    if names - ENVIRONMENT: broken("environment", names - ENVIRONMENT)
