package policy

import (
	"slices"
	"strings"
)

// The codes of a [Refusal].
const (
	CodeUnknownAccount = "unknown_account" // there is no such account, or type
	CodeKeyKind        = "key_kind"        // accounts of the type have no keys of this kind
	CodeArchived       = "archived"
	CodeSuspended      = "suspended"
)

// Applicant is an account that asks to act, as far as it is known who it is.
type Applicant struct {
	Type      string
	StoredKey bool // it shows a stored key; otherwise a signed one
	// Unknown says why the business has no such account. It is empty where the business has it, and where only a platform could
	// tell.
	Unknown string
	// Suspended holds the reasons for which the account is suspended, by name.
	Suspended []string
}

// Refusal says why an account may not act.
type Refusal struct {
	Code   string // one of the codes above
	Reason string // a sentence for people
}

// archived is the reason of a suspension that nothing lifts.
const archived = "archived"

// suspensions says in words what each reason of a suspension means, and who lifts it.
var suspensions = map[string]string{
	"operator":             "an operator suspended it, until keys revoke --resume",
	"integration_disabled": "its integration is disabled; enable it",
}

// Admit decides whether an account may act now, nil where it may. It is the one decision behind a sidecar's minting, a platform's
// API and its verdicts for other services.
func Admit(a Applicant) *Refusal {
	kind, ok := FindAccountType(a.Type)
	switch {
	case !ok:
		return &Refusal{CodeUnknownAccount, "the account type is not known here"}
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
