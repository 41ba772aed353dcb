package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestAdmissionOfEveryTypeKindOfKeyAndPairOfReasons walks through the table of types. The tests of platform and sidecar
// cover their use of the decision.
func TestAdmissionOfEveryTypeKindOfKeyAndPairOfReasons(t *testing.T) {
	reasons := []string{"", "operator", "integration_disabled", "archived"}
	for _, kind := range AccountTypes() {
		for _, stored := range []bool{false, true} {
			for _, unknown := range []string{"", "the business has no such account"} {
				for _, first := range reasons {
					for _, second := range reasons {
						a := Applicant{Type: kind.Name, StoredKey: stored, Unknown: unknown}
						for _, reason := range []string{first, second} {
							if reason != "" && !slices.Contains(a.Suspended, reason) {
								a.Suspended = append(a.Suspended, reason)
							}
						}
						want := ""
						switch {
						case stored && !kind.StoredKeys, !stored && !kind.SignedKeys:
							want = CodeKeyKind
						case unknown != "":
							want = CodeUnknownAccount
						case first == "archived" || second == "archived":
							want = CodeArchived
						case first != "" || second != "":
							want = CodeSuspended
						}
						refusal := Admit(a)
						if got := refusalCode(refusal); got != want {
							t.Errorf("%+v: %q, want %q", a, got, want)
						}
						for _, reason := range a.Suspended {
							if want == CodeSuspended && !strings.Contains(refusal.Reason, suspensions[reason]) {
								t.Errorf("%+v: %q does not say why", a, refusal.Reason)
							}
						}
					}
				}
			}
		}
	}
	if got := refusalCode(Admit(Applicant{Type: "service_other"})); got != CodeUnknownAccount {
		t.Errorf("an unknown type: %q", got)
	}
	if got := Admit(Applicant{Type: ServiceAutomation, Suspended: []string{"of a later version"}}); refusalCode(got) != CodeSuspended {
		t.Errorf("an unknown reason: %v", got)
	}
}

func refusalCode(r *Refusal) string {
	if r == nil {
		return ""
	}
	return r.Code
}
