package policy

import (
	"slices"
	"strings"
)

// The codes of a [Refusal].
const (
	CodeUnknownAccount = "unknown_account" // the account or its type does not exist
	CodeKeyKind        = "key_kind"        // accounts of the type have no keys of this kind
	CodeArchived       = "archived"
	CodeSuspended      = "suspended"
)

// Applicant is an account that requests to act.
type Applicant struct {
	Type      string
	StoredKey bool // it presents a stored key; otherwise a signed one
	// Unknown says why the business has no such account. It is empty if the business has it, and on a sidecar, which
	// cannot know.
	Unknown string
	// Suspended holds the reasons for which the account is suspended, by name.
	Suspended []string
}

// Refusal says why an account may not act.
type Refusal struct {
	Code   string // one of the codes above
	Reason string // a human-readable sentence
}

// archived is the reason of a permanent suspension.
const archived = "archived"

// suspensions explains each reason for a suspension, and how it is lifted.
var suspensions = map[string]string{
	"operator":             "an operator suspended it, until keys revoke --resume",
	"integration_disabled": "its integration is disabled; enable it",
}

// Admit decides whether an account may act now, and returns nil if it may. A sidecar's minting, a platform's API and
// its /verify endpoint all use this decision.
func Admit(a Applicant) *Refusal {
	kind, ok := FindAccountType(a.Type)
	switch {
	case !ok:
		return &Refusal{CodeUnknownAccount, "the account type is unknown"}
	case a.StoredKey && !kind.StoredKeys:
		return &Refusal{CodeKeyKind, "accounts of type " + kind.Name + " have no stored keys"}
	case !a.StoredKey && !kind.SignedKeys:
		return &Refusal{CodeKeyKind, "accounts of type " + kind.Name + " have no signed keys"}
	case a.Unknown != "":
		return &Refusal{CodeUnknownAccount, a.Unknown}
	case slices.Contains(a.Suspended, archived):
		return &Refusal{CodeArchived, "the account is archived"}
	case len(a.Suspended) == 0:
		return nil
	}
	why := make([]string, len(a.Suspended))
	for i, name := range a.Suspended {
		if why[i] = suspensions[name]; why[i] == "" {
			why[i] = name
		}
	}
	return &Refusal{CodeSuspended, "the account is suspended: " + strings.Join(why, "; and ")}
}
