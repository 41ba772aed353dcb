package redacted

import (
	"slices"
	"testing"
)

func TestNamesHaveOneEntryEach(t *testing.T) {
	for i, n := range names {
		if slices.ContainsFunc(names[:i], func(other secretName) bool { return other.words == n.words }) {
			t.Errorf("%q is there twice", n.words)
		}
	}
}
