# modes and times outside /tmp cannot be changed
# refused only with namespaces
refused("chmod", lambda: os.chmod(VICTIM, 0o666))
refused("utime", lambda: os.utime(VICTIM))
