// Package ids defines the valid ids of a business, an account, an execution, a signed key or an account type.
//
// An id travels in headers, in claims and in the names of Redis keys. Kizen's own are UUIDs.
package ids

import (
	"fmt"
	"regexp"
)

// Pattern is the regular expression that every id matches.
const Pattern = `^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`

// Rule is Pattern as a sentence that completes "the business id ...".
const Rule = "must be an id: at most 128 letters, digits, '.', '_', ':' and '-', of which the first is a letter or a digit"

var pattern = regexp.MustCompile(Pattern)

// Valid reports whether text can be an id.
func Valid(text string) bool { return pattern.MatchString(text) }

// Check returns an error that names the invalid id and the rule.
func Check(name, text string) error {
	if Valid(text) {
		return nil
	}
	return fmt.Errorf("%s %q %s", name, text, Rule)
}
