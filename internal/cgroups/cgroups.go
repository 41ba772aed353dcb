// Package cgroups finds the control groups of this process and their limit on memory, see cgroups(7).
package cgroups

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Own maps a v1 controller, or "" for v2, to the directory of the process's own group.
type Own map[string]string

// Find returns the groups of this process.
func Find() (Own, error) {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("no cgroups: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("no cgroups: %w", err)
	}
	return parse(string(membership), string(mounts)), nil
}

// parse joins /proc/self/cgroup and /proc/self/mountinfo.
func parse(membership, mounts string) Own {
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
	for line := range strings.Lines(mounts) {
		mount, super, ok := strings.Cut(strings.TrimSpace(line), " - ")
		fields, superFields := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 5 || len(superFields) < 3 {
			continue
		}
		root, point := fields[3], fields[4]
		var controllers []string
		switch superFields[0] {
		case "cgroup2":
			controllers = []string{""}
		case "cgroup":
			controllers = strings.Split(superFields[2], ",")
		}
		for _, controller := range controllers {
			if group, ok := paths[controller]; ok {
				// A container may see only its part of the hierarchy.
				own[controller] = path.Join(point, strings.TrimPrefix(group, strings.TrimSuffix(root, "/")))
			}
		}
	}
	return own
}

// unlimited is less than what v1 reports for a group without a limit, and more than the memory of any machine.
const unlimited = 1 << 60

// MemoryLimit returns the smallest memory limit of the group and the groups above it in bytes, or 0 if they have none.
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

// value reads the number behind prefix at the beginning of a line, or 0.
func value(dir, file, prefix string) int64 {
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			number, _ := strconv.ParseInt(text, 10, 64) // "max" is no number
			return number
		}
	}
	return 0
}
