package cgroups

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMemoryLimitIsTheSmallestOfTheGroupAndItsParents(t *testing.T) {
	const mounts = "30 20 0:26 / %s rw shared:9 - %s cgroup rw,%s\n"
	for _, known := range []struct {
		name       string
		membership string
		kind       string
		files      map[string]string
		want       int64
	}{
		{"v2", "0::/a/b\n", "cgroup2", map[string]string{"a/memory.max": "268435456\n", "a/b/memory.max": "max\n"},
			256 << 20},
		{"v2, the inner limit is smaller", "0::/a/b\n", "cgroup2",
			map[string]string{"a/memory.max": "268435456\n", "a/b/memory.max": "1048576\n"}, 1 << 20},
		{"v2, without the controller in the inner group", "0::/a/b\n", "cgroup2",
			map[string]string{"a/memory.max": "268435456\n", "a/b/pids.max": "1\n"}, 256 << 20},
		{"v2 without a limit", "0::/a\n", "cgroup2", map[string]string{"a/memory.max": "max\n"}, 0},
		{"v1", "4:memory:/a\n", "cgroup",
			map[string]string{"a/memory.stat": "cache 1\nhierarchical_memory_limit 268435456\nhierarchical_memsw_limit 1\n"},
			256 << 20},
		{"v1 without a limit", "4:memory:/a\n", "cgroup",
			map[string]string{"a/memory.stat": "hierarchical_memory_limit 9223372036854771712\n"}, 0},
		{"v1 beside v2", "4:memory:/a\n0::/\n", "cgroup",
			map[string]string{"a/memory.stat": "hierarchical_memory_limit 4096\n"}, 4096},
		{"no memory controller", "3:pids:/a\n", "cgroup", nil, 0},
	} {
		t.Run(known.name, func(t *testing.T) {
			root := t.TempDir()
			for name, content := range known.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			own, err := join(known.membership, strings.NewReader(fmt.Sprintf(mounts, root, known.kind, "memory")))
			if err != nil {
				t.Fatal(err)
			}
			if got := own.MemoryLimit(); got != known.want {
				t.Errorf("%d, want %d", got, known.want)
			}
		})
	}
}

func TestOwnGroupsAreFoundBelowTheirMounts(t *testing.T) {
	for name, row := range map[string]struct {
		membership, mounts string
		want               Own
	}{
		"version 2": {
			"0::/user.slice/sidecar.service\n", "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			Own{"": "/sys/fs/cgroup/user.slice/sidecar.service"},
		},
		"version 1, and a controller that is not mounted": {
			"4:memory:/a\n3:cpu,cpuacct:/b\n2:pids:/c\n1:name=systemd:/d\n",
			"1 0 0:1 / / rw - ext4 /dev/sda1 rw\n40 1 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
				"41 1 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
			Own{"memory": "/sys/fs/cgroup/memory/a", "cpu": "/sys/fs/cgroup/cpu,cpuacct/b",
				"cpuacct": "/sys/fs/cgroup/cpu,cpuacct/b"},
		},
		"a container that sees its part of the hierarchy": {
			"4:memory:/docker/abc/step\n", "40 1 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			Own{"memory": "/sys/fs/cgroup/memory/step"},
		},
		"a mount point with a space": {
			"0::/x\n", `30 24 0:26 / /mnt/c\040group rw - cgroup2 cgroup2 rw` + "\n", Own{"": "/mnt/c group/x"},
		},
		"no mounts": {"0::/x\n", "", Own{}},
	} {
		if got, err := join(row.membership, strings.NewReader(row.mounts)); err != nil || !maps.Equal(got, row.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, row.want)
		}
	}
}
