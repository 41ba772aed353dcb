package stage

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mapIdentity gives the stage its identity in a user namespace that an ordinary user created. The stage writes the map
// itself: the sidecar is not dumpable, so it does not own its child's /proc files until the child has executed.
func mapIdentity(job *Job) error {
	if job.MapSelf == nil {
		return nil
	}
	m := job.MapSelf
	for _, file := range []struct{ name, content string }{
		// An ordinary user may map a group only after giving up setgroups(2), see user_namespaces(7).
		{"setgroups", "deny"},
		{"gid_map", fmt.Sprintf("%d %d 1", m.GID, m.HostGID)},
		{"uid_map", fmt.Sprintf("%d %d 1", m.UID, m.HostUID)},
	} {
		if err := os.WriteFile("/proc/self/"+file.name, []byte(file.content), 0); err != nil {
			return err
		}
	}
	return nil
}

// setSurroundings makes the step the first victim when the machine runs out of memory, which needs the host's /proc.
// It also hides the host's cgroup paths and host name. The step inherits all of this.
func setSurroundings(job *Job) error {
	// A fork server must outlive its forks, which raise their own score.
	if !job.ForkServer {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
			return fmt.Errorf("raise the out-of-memory score: %w", err)
		}
	}
	if job.HideCgroups {
		// Best effort: without cgroup namespaces, the step only sees a path.
		_ = unix.Unshare(unix.CLONE_NEWCGROUP)
	}
	if job.Hostname != "" {
		if err := unix.Sethostname([]byte(job.Hostname)); err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	return nil
}

// dropCapabilities clears the bounding and ambient sets, so that no program the step executes can gain a capability. If
// the stage already has the step's identity, it also clears its own sets; otherwise setuid(2) clears them.
func dropCapabilities(job *Job) error {
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	// Ask the kernel for each capability, because it may know more than the headers of this build.
	for capability := uintptr(0); unix.Prctl(unix.PR_CAPBSET_READ, capability, 0, 0, 0) == nil; capability++ {
		// It fails without CAP_SETPCAP, but then no capability is left to drop.
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
	}
	if job.Step != nil {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// forbidNewPrivileges makes set-user-ID programs and file capabilities ineffective. All descendants inherit this.
func forbidNewPrivileges(*Job) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	// The step must not read or trace the stage, although the stage holds no secret.
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

func setLimits(job *Job) error {
	for _, limit := range job.Limits {
		rlimit := unix.Rlimit{Cur: limit.Value, Max: limit.Value}
		var now unix.Rlimit
		if err := unix.Getrlimit(limit.Resource, &now); err != nil {
			return fmt.Errorf("read limit %d: %w", limit.Resource, err)
		}
		// Never above the sidecar's own limits.
		rlimit.Max = min(rlimit.Max, now.Max)
		rlimit.Cur = min(rlimit.Cur, rlimit.Max)
		if err := unix.Prlimit(0, limit.Resource, &rlimit, nil); err != nil {
			return fmt.Errorf("set limit %d to %d: %w", limit.Resource, limit.Value, err)
		}
	}
	return nil
}
