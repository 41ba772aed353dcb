// Package buildinfo identifies the build of the running program.
package buildinfo

import "runtime/debug"

// Version returns the commit that the program was built from, or the version of its module if the commit is unknown.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return info.Main.Version
}
