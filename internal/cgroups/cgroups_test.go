package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestTheSmallestLimitAboveTheProcessCounts(t *testing.T) {
	const mounts = "30 20 0:26 / %s rw shared:9 - %s cgroup rw,%s\n"
	for _, known := range []struct {
		name       string
		membership string
		kind       string
		files      map[string]string
		want       int64
	}{
		{"v2", "0::/a/b\n", "cgroup2", map[string]string{"a/memory.max": "268435456\n", "a/b/memory.max": "max\n"}, 256 << 20},
		{"v2, the inner limit is smaller", "0::/a/b\n", "cgroup2", map[string]string{"a/memory.max": "268435456\n", "a/b/memory.max": "1048576\n"}, 1 << 20},
		{"v2, without the controller in the inner group", "0::/a/b\n", "cgroup2", map[string]string{"a/memory.max": "268435456\n", "a/b/pids.max": "1\n"}, 256 << 20},
		{"v2 without a limit", "0::/a\n", "cgroup2", map[string]string{"a/memory.max": "max\n"}, 0},
		{"v1", "4:memory:/a\n", "cgroup", map[string]string{"a/memory.stat": "cache 1\nhierarchical_memory_limit 268435456\nhierarchical_memsw_limit 1\n"}, 256 << 20},
		{"v1 without a limit", "4:memory:/a\n", "cgroup", map[string]string{"a/memory.stat": "hierarchical_memory_limit 9223372036854771712\n"}, 0},
		{"v1 beside v2", "4:memory:/a\n0::/\n", "cgroup", map[string]string{"a/memory.stat": "hierarchical_memory_limit 4096\n"}, 4096},
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
			own := parse(known.membership, fmt.Sprintf(mounts, root, known.kind, "memory"))
			if got := own.MemoryLimit(); got != known.want {
				t.Errorf("%d, want %d", got, known.want)
			}
		})
	}
}

func TestAContainerSeesOnlyItsPartOfTheHierarchy(t *testing.T) {
	own := parse("5:memory:/docker/x/inner\n", "30 20 0:26 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n")
	if own["memory"] != "/sys/fs/cgroup/memory/inner" {
		t.Errorf("%v", own)
	}
}
