package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kizen/kizen-sidecar/runner/sandbox/stage"
)

// home is the step's working directory and the only place it can write to, beside /dev/shm and sourceDir.
const home = "/tmp"

// hostName is the step's own.
const hostName = "kizen-step"

// sourceDir is where the program's source can be put, so that /tmp begins empty.
const sourceDir = "/step"

// sourceSize is the size in bytes of sourceDir.
const sourceSize = 16 * mib

// shm is where multiprocessing makes its locks and queues.
const shm = "/dev/shm"

// ShmSize is the size in bytes of /dev/shm, which multiprocessing needs for its locks and queues.
const ShmSize = 64 * mib

// MaxFiles is how many files and directories /tmp and /dev/shm may each hold: each takes a kilobyte of the kernel's memory.
const MaxFiles = 1 << 16

// systemDirs are what any Python may need: programs and shared libraries, certificates, time zones. A directory of the
// host that is a symbolic link, as /lib is on most, stays one.
var systemDirs = []string{
	"/usr/lib", "/usr/lib64", "/usr/lib32", "/usr/libexec", "/usr/bin", "/usr/sbin", "/usr/local/lib",
	"/usr/share/zoneinfo", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/python3",
	"/lib", "/lib64", "/bin", "/sbin",
	"/etc/ssl/certs", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted", "/etc/alternatives",
}

// systemFiles are shown as they are.
var systemFiles = []string{
	"/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/services", "/etc/protocols", "/etc/mime.types",
}

// copiedFiles are copied for each program: small, and some change.
var copiedFiles = []string{
	"/etc/localtime", "/etc/timezone", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf",
	"/etc/gai.conf",
}

// maxCopied is the size in bytes up to which a file is copied, all together well below what one Job may be.
const maxCopied = 24 << 10

// deviceNodes are all of /dev that steps get.
var deviceNodes = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// fileTree is what every program sees of the host.
type fileTree struct {
	mounts      []stage.Mount
	dirs, files []string // that exist on the host, links resolved or not
}

// hostTree finds out what of the system's directories and files exists here.
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

// build lists the mounts of one program: first what is the same for all, then /proc and the writable places, and the
// program's own paths last, since they may lie in one of them.
func (t fileTree) build(readable []string, uid int, tmpSize int64, proc, forkServer bool) []stage.Mount {
	mounts := slices.Clone(t.mounts)
	// Programs look up their own host name; of the host's names all are there too.
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil || len(hosts) > maxCopied/2 {
		hosts = []byte("127.0.0.1 localhost\n::1 localhost\n")
	}
	mounts = append(mounts, stage.Mount{Kind: stage.MountFile, Target: "/etc/hosts", Source: fmt.Sprintf("127.0.0.1 %s\n%s", hostName, hosts)})
	copied := len(hosts)
	for _, file := range copiedFiles {
		content, err := os.ReadFile(file)
		if err != nil || copied+len(content) > maxCopied {
			continue
		}
		copied += len(content)
		mounts = append(mounts, stage.Mount{Kind: stage.MountFile, Target: file, Source: string(content)})
	}
	// A name for the step's user; those of the host are none of its business.
	mounts = append(mounts,
		stage.Mount{Kind: stage.MountFile, Target: "/etc/passwd", Source: fmt.Sprintf("root:x:0:0::/:/bin/false\nstep:x:%d:%d::%s:/bin/sh\n", uid, uid, home)},
		stage.Mount{Kind: stage.MountFile, Target: "/etc/group", Source: fmt.Sprintf("root:x:0:\nstep:x:%d:\n", uid)})
	for _, node := range deviceNodes {
		mounts = append(mounts, stage.Mount{Kind: stage.MountDevice, Target: node, Source: node})
	}
	for name, target := range map[string]string{"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		mounts = append(mounts, stage.Mount{Kind: stage.MountLink, Target: "/dev/" + name, Source: "/proc/self/" + target})
	}
	if proc {
		// Processes and nothing of the machine: its command line, load, pressure, locks and devices are the host's.
		mounts = append(mounts, stage.Mount{Kind: stage.MountProc, Target: "/proc", Source: "hidepid=2,subset=pid", Writable: forkServer})
	}
	mounts = append(mounts,
		stage.Mount{Kind: stage.MountTmpfs, Target: shm, Source: tmpfsOptions(ShmSize)},
		stage.Mount{Kind: stage.MountTmpfs, Target: sourceDir, Source: fmt.Sprintf("mode=1777,size=%d,nr_inodes=8", sourceSize)},
		stage.Mount{Kind: stage.MountTmpfs, Target: home, Source: tmpfsOptions(tmpSize)})
	for _, path := range readable {
		mounts = append(mounts, stage.Mount{Kind: stage.MountBind, Target: path, Source: path})
	}
	return mounts
}

func tmpfsOptions(size int64) string {
	return fmt.Sprintf("mode=1777,size=%d,nr_inodes=%d", size, MaxFiles)
}

// resolve turns the paths that a program asks for into real ones, and the links that lead to them; "/usr" and whatever
// every program sees is left out.
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
	// Parents before children, which then are there already.
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
