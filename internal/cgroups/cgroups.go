// Package cgroups finds the control groups of this process and their limit on memory, see cgroups(7).
package cgroups

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Own maps each v1 controller, or "" for v2, to the directory of this process's group.
type Own map[string]string

// Find returns the groups of this process.
func Find() (Own, error) {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("no cgroups: %w", err)
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("no cgroups: %w", err)
	}
	defer mounts.Close()
	return join(string(membership), mounts)
}

// join returns the directories of the groups in /proc/self/cgroup, according to the mounts in /proc/self/mountinfo.
func join(membership string, mounts io.Reader) (Own, error) {
	mounted, err := mountinfo.GetMountsFromReader(mounts, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("no cgroups: %w", err)
	}
	paths := make(map[string]string)
	for line := range strings.Lines(membership) {
		// hierarchy:controllers:path
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			paths[controller] = fields[2]
		}
	}
	own := make(Own)
	for _, mount := range mounted {
		controllers := []string{""}
		if mount.FSType == "cgroup" {
			controllers = strings.Split(mount.VFSOptions, ",")
		}
		for _, controller := range controllers {
			if group, ok := paths[controller]; ok {
				// A container may see only its part of the hierarchy.
				own[controller] = path.Join(mount.Mountpoint, strings.TrimPrefix(group, strings.TrimSuffix(mount.Root, "/")))
			}
		}
	}
	return own, nil
}

// unlimited is below the limit that v1 reports for a group without a limit, and above the memory of any machine.
const unlimited = 1 << 60

// MemoryLimit returns the smallest memory limit of the group and its parents in bytes, or 0 if they have none.
func (own Own) MemoryLimit() int64 {
	if dir, ok := own["memory"]; ok {
		if limit := value(dir, "memory.stat", "hierarchical_memory_limit "); limit < unlimited {
			return limit
		}
		return 0
	}
	var least int64
	for dir := own[""]; len(dir) > 1; dir = filepath.Dir(dir) {
		if limit := value(dir, "memory.max", ""); limit > 0 && (least == 0 || limit < least) {
			least = limit
		}
	}
	return least
}

// value returns the number after prefix at the beginning of a line of a file, or 0.
func value(dir, file, prefix string) int64 {
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			number, _ := strconv.ParseInt(text, 10, 64) // "max" is not a number
			return number
		}
	}
	return 0
}
