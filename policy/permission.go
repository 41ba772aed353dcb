package policy

import (
	"fmt"
	"strings"
)

// ManageServiceAccounts is the settings permission for managing service accounts.
const ManageServiceAccounts = "MANAGE_SERVICE_ACCOUNTS"

// Level is the level of a permission. Each level includes those before it.
type Level int

// The levels of a permission.
const (
	None Level = iota
	Read
	Write
	Remove
)

var levelNames = [...]string{None: "none", Read: "read", Write: "write", Remove: "remove"}

// Levels returns every level, the lowest first.
func Levels() []Level { return []Level{None, Read, Write, Remove} }

// String returns the level's name.
func (l Level) String() string {
	if l < None || l > Remove {
		return fmt.Sprintf("Level(%d)", int(l))
	}
	return levelNames[l]
}

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(text []byte) error {
	for i, name := range levelNames {
		if name == string(text) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("unknown permission level %q; use one of %s", text, strings.Join(levelNames[:], ", "))
}
