package sidecartest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// parent matches the parent's ID in /proc/PID/stat, after the second field, which can contain anything.
var parent = regexp.MustCompile(`\) \S (\d+) `)

// Descendants returns the descendants of a process, including zombies.
func Descendants(pid int) (all []int) {
	parents := map[int]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if found := parent.FindSubmatch(text); err == nil && found != nil {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			parents[child], _ = strconv.Atoi(string(found[1]))
		}
	}
	for child := range parents {
		for at := child; at != 0; at = parents[at] {
			if parents[at] == pid {
				all = append(all, child)
				break
			}
		}
	}
	slices.Sort(all)
	return all
}
