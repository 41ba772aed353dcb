package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// home is the step's working directory, and its only writable directory except /dev/shm and sourceDir.
const home = "/tmp"

// hostName is the host name in the sandbox.
const hostName = "kizen-step"

// sourceDir is the directory for the program's source, so that /tmp starts empty.
const sourceDir = "/step"

// sourceSize is the size in bytes of sourceDir.
const sourceSize = 16 * mib

// shm is the directory in which multiprocessing creates its locks and queues.
const shm = "/dev/shm"

// ShmSize is the size in bytes of /dev/shm, which multiprocessing needs for its locks and queues.
const ShmSize = 64 * mib

// MaxFiles is the maximal number of files and directories in each of /tmp and /dev/shm: each takes a kilobyte of kernel
// memory.
const MaxFiles = 1 << 16

// systemDirs are the directories that any Python may need: programs and shared libraries, certificates, time zones. If
// a directory of the host is a symbolic link, as /lib usually is, it stays one.
var systemDirs = []string{
	"/usr/lib", "/usr/lib64", "/usr/lib32", "/usr/libexec", "/usr/bin", "/usr/sbin", "/usr/local/lib",
	"/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/python3",
	"/lib", "/lib64", "/bin", "/sbin",
	"/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/alternatives",
}

// systemFiles are bind-mounted unchanged.
var systemFiles = []string{
	"/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/services", "/etc/protocols",
	"/etc/mime.types",
}

// copiedFiles are copied for each program: they are small, and some change.
var copiedFiles = []string{
	"/etc/localtime", "/etc/timezone", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf",
	"/etc/gai.conf",
}

// maxCopied is the maximal size in bytes of a copied file; all together stay well below the maximal size of a Job.
const maxCopied = 24 << 10

// deviceNodes are the only devices that steps get.
var deviceNodes = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// fileTree holds the parts of the host's file system that every program sees.
type fileTree struct {
	mounts      []stage.Mount
	dirs, files []string // existing paths of the host, with and without links resolved
}

// hostTree finds the system directories and files that exist here.
func hostTree() fileTree {
	var t fileTree
	for _, dir := range systemDirs {
		info, err := os.Lstat(dir)
		switch {
		case err != nil:
		case info.Mode()&os.ModeSymlink != 0:
			if target, err := os.Readlink(dir); err == nil {
				t.mounts = append(t.mounts, stage.Mount{Kind: stage.MountLink, Target: dir, Source: target})
			}
		case info.IsDir():
			t.mounts = append(t.mounts, stage.Mount{Kind: stage.MountBind, Target: dir, Source: dir})
			t.dirs = append(t.dirs, dir)
		}
	}
	for _, file := range systemFiles {
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
			t.mounts = append(t.mounts, stage.Mount{Kind: stage.MountBind, Target: file, Source: file})
			t.files = append(t.files, file)
		}
	}
	t.files = append(t.files, copiedFiles...)
	t.files = append(t.files, "/etc/hosts", "/etc/passwd", "/etc/group")
	return t
}

// build lists the mounts of one program: first the mounts of all programs, then /proc and the writable directories.
// The program's own paths come last, because they may be inside one of the others.
func (t fileTree) build(readable []string, uid int, tmpSize int64, proc, forkServer bool) []stage.Mount {
	mounts := slices.Clone(t.mounts)
	// Programs look up their own host name. The names in the host's file stay available.
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil || len(hosts) > maxCopied/2 {
		hosts = []byte("127.0.0.1 localhost\n::1 localhost\n")
	}
	mounts = append(mounts, stage.Mount{Kind: stage.MountFile, Target: "/etc/hosts",
		Source: fmt.Sprintf("127.0.0.1 %s\n%s", hostName, hosts)})
	copied := len(hosts)
	for _, file := range copiedFiles {
		content, err := os.ReadFile(file)
		if err != nil || copied+len(content) > maxCopied {
			continue
		}
		copied += len(content)
		mounts = append(mounts, stage.Mount{Kind: stage.MountFile, Target: file, Source: string(content)})
	}
	// A name for the step's user, without the users of the host.
	mounts = append(mounts,
		stage.Mount{Kind: stage.MountFile, Target: "/etc/passwd",
			Source: fmt.Sprintf("root:x:0:0::/:/bin/false\nstep:x:%d:%d::%s:/bin/sh\n", uid, uid, home)},
		stage.Mount{Kind: stage.MountFile, Target: "/etc/group", Source: fmt.Sprintf("root:x:0:\nstep:x:%d:\n", uid)})
	for _, node := range deviceNodes {
		mounts = append(mounts, stage.Mount{Kind: stage.MountDevice, Target: node, Source: node})
	}
	for name, target := range map[string]string{"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		mounts = append(mounts, stage.Mount{Kind: stage.MountLink, Target: "/dev/" + name, Source: "/proc/self/" + target})
	}
	if proc {
		// Show only processes, not the machine's command line, load, pressure, locks and devices.
		mounts = append(mounts, stage.Mount{Kind: stage.MountProc, Target: "/proc", Source: "hidepid=2,subset=pid",
			Writable: forkServer})
	}
	mounts = append(mounts,
		stage.Mount{Kind: stage.MountTmpfs, Target: shm, Source: tmpfsOptions(ShmSize)},
		stage.Mount{Kind: stage.MountTmpfs, Target: sourceDir,
			Source: fmt.Sprintf("mode=1777,size=%d,nr_inodes=8", sourceSize)},
		stage.Mount{Kind: stage.MountTmpfs, Target: home, Source: tmpfsOptions(tmpSize)})
	for _, path := range readable {
		mounts = append(mounts, stage.Mount{Kind: stage.MountBind, Target: path, Source: path})
	}
	return mounts
}

// askOverTCP makes programs query name servers over TCP, because the supervisor of connections can answer only over
// TCP.
func askOverTCP(mounts []stage.Mount) {
	for i, mount := range mounts {
		if mount.Kind == stage.MountFile && mount.Target == "/etc/resolv.conf" {
			mounts[i].Source = strings.TrimSuffix(mount.Source, "\n") + "\noptions use-vc\n"
		}
	}
}

func tmpfsOptions(size int64) string {
	return fmt.Sprintf("mode=1777,size=%d,nr_inodes=%d", size, MaxFiles)
}

// resolve returns the real paths of a program's readable paths, and the links that lead to them. It omits "/usr" and
// everything else that all programs see.
func (t fileTree) resolve(paths []string) (real []string, links []stage.Mount, err error) {
	for _, path := range paths {
		path = filepath.Clean(path)
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, nil, fmt.Errorf("readable path %q: %w", path, err)
		}
		if target != path && !t.covers(path) {
			links = append(links, stage.Mount{Kind: stage.MountLink, Target: path, Source: target})
		}
		if target != "/usr" && !t.covers(target) && !slices.Contains(real, target) {
			real = append(real, target)
		}
	}
	// Sort parents before their children, so that children can be dropped.
	slices.Sort(real)
	return slices.DeleteFunc(real, func(path string) bool {
		return slices.ContainsFunc(real, func(other string) bool { return strings.HasPrefix(path, other+"/") })
	}), links, nil
}

func (t fileTree) covers(path string) bool {
	for _, m := range t.mounts {
		if path == m.Target || strings.HasPrefix(path, m.Target+"/") {
			return true
		}
	}
	return false
}
