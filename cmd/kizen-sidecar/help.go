package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// helpText is a flag's help with its default, where that says anything, and
// its environment variables.
func helpText(value *kong.Value) string {
	defaults := value.Default
	if defaults != "" && defaults != "0" && defaults != "0s" && defaults != "-1" && !strings.Contains(value.Help, "Default:") {
		described := *value
		described.Help = fmt.Sprintf("%s Default: %s.", value.Help, defaults)
		value = &described
	}
	return kong.DefaultHelpValueFormatter(value)
}
