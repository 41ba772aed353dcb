package policy

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
)

// The codes of a refusing [Decision].
const (
	CodeGuardrail    = "guardrail"      // a built-in forbid
	CodePolicy       = "policy"         // one of the operator's forbids
	CodeNotPermitted = "not_permitted"  // nothing permits it
	CodePath         = "malformed_path" // the path cannot be decided on
	CodeFailed       = "policy_failed"  // a policy could not be evaluated
)

// Decision is the decision of an [Engine] about one call.
type Decision struct {
	Allowed bool
	Policy  string // the ID of the deciding policy; empty if none decided
	Reason  string // human-readable
	Code    string // one of the Code constants; empty when allowed
}

// Account is the caller, or the target of a call.
type Account struct {
	ID, Type, BusinessID string
	Level                Level // of [ManageServiceAccounts]
}

// Call is one call to decide on. Method and Path are required.
type Call struct {
	Method  string
	Path    string   // relative to the API root, in any spelling
	Target  *Account // the account that the call is about; nil if unknown
	Changes []string // the fields that the call would change; nil if unknown
	Grants  Level    // the highest level that the call would grant to the target
}

// Engine decides by one immutable set of policies. It is safe for concurrent use.
type Engine struct {
	rules       ruleSet
	connections ruleSet // rules for connections of steps
	operations  operations
	levels      bool // decides by permission levels
}

// ForCalls returns the engine for calls to the API and for connections of steps. paths are the operator's rule files,
// and directories of them (*.cedar). If no file contains a permit for calls, every call that no forbid stops is
// allowed; otherwise a call needs a permit. Connections to public addresses are allowed unless a forbid stops them.
// ForCalls reports all problems of all files, each as an [*Error] or as an error of the file system.
func ForCalls(paths ...string) (*Engine, error) {
	return load(func(l *loader) {
		own := len(l.rules)
		for _, path := range paths {
			l.addPath(path)
		}
		if !hasPermit(l.rules[own:]) {
			l.addBuiltIn("calls.cedar", callsText)
		}
		l.addBuiltIn("connections.cedar", connectionsText)
	})
}

// ForPlatform returns the engine for a platform: the guardrails and the rules of each permission level.
func ForPlatform() (*Engine, error) {
	engine, err := load(func(l *loader) { l.addBuiltIn("permissions.cedar", permissionsText) })
	if err == nil {
		engine.levels = true
	}
	return engine, err
}

func load(more func(*loader)) (*Engine, error) {
	ops, err := loadOperations(operationsYAML)
	if err != nil {
		return nil, err
	}
	l, err := newLoader(ops)
	if err != nil {
		return nil, err
	}
	l.addBuiltIn("guardrails.cedar", guardrailsText)
	more(l)
	if err := errors.Join(l.errs...); err != nil {
		return nil, err
	}
	return &Engine{rules: l.rules, connections: l.connections, operations: ops}, nil
}

// Count returns the number of policies: those in the binary, and those from files.
func (e *Engine) Count() (builtIn, own int) {
	for _, r := range slices.Concat(e.rules, e.connections) {
		if r.builtIn {
			builtIn++
		}
	}
	return builtIn, len(e.rules) + len(e.connections) - builtIn
}

// Operations returns the operations that a call belongs to, the narrowest first, possibly none.
func (e *Engine) Operations(method, path string) []string {
	if _, err := Canonical(path); err != nil {
		return nil
	}
	within, _ := e.operations.find(action(method), path)
	return within
}

// Principal is an engine for the calls of one account. Each execution has one.
type Principal struct {
	engine  *Engine
	account Account
	entity  cedar.Entity
	rules   map[string]ruleSet // the applicable rules, by method

	connections ruleSet // the applicable rules for connections
}

// For returns the Principal for account. Its type must be one of [AccountTypes].
func (e *Engine) For(account Account) (*Principal, error) {
	entity, err := accountEntity(account)
	if err != nil {
		return nil, err
	}
	return &Principal{engine: e, account: account, entity: entity, rules: applicable(e.rules, entity),
		connections: applicableTo(connectEntity, e.connections, entity)}, nil
}

// Authorize decides on a call by its method and path.
func (p *Principal) Authorize(_ context.Context, method, path string) Decision {
	return p.Decide(Call{Method: method, Path: path})
}

// Decide decides on a call. The call is allowed if it is allowed under every spelling of its path.
func (p *Principal) Decide(call Call) (decision Decision) {
	path, err := Canonical(call.Path)
	var paths []string
	if err == nil {
		paths, err = spellings(path)
	}
	if err != nil {
		return Decision{Code: CodePath, Reason: fmt.Sprintf("%v, so policies cannot decide on it", err)}
	}
	within, about := p.engine.operations.find(action(call.Method), call.Path)
	for _, path := range paths {
		if decision = p.decide(call, path, within, about); !decision.Allowed {
			return decision
		}
	}
	return decision
}

// decide decides on a call under one spelling of its path, with its operations and the accounts it is about.
func (p *Principal) decide(call Call, path string, within, about []string) Decision {
	var err error
	method := action(call.Method)
	entities := callEntities{principal: p.entity, endpoint: endpointEntity(path, within)}
	fields := cedar.RecordMap{}
	switch {
	case call.Target != nil:
		if entities.target, err = accountEntity(*call.Target); err != nil {
			return Decision{Code: CodeFailed, Reason: err.Error()}
		}
		fields["target"] = entities.target.UID
	case slices.Contains(about, strings.ToLower(p.account.ID)):
		fields["target"] = p.entity.UID
	}
	if call.Changes != nil {
		fields["changes"] = stringSet(call.Changes)
	}
	if call.Grants > None {
		fields["grants"] = cedar.Long(call.Grants)
	}
	request := cedar.Request{
		Principal: p.entity.UID,
		Action:    cedar.NewEntityUID("Action", cedar.String(method)),
		Resource:  entities.endpoint.UID,
		Context:   cedar.NewRecord(fields),
	}
	decision := p.rules[method].decide(entities, request)
	if decision.Code == CodeNotPermitted && p.engine.levels {
		for level := Read; level <= Remove; level++ {
			if slices.Contains(within, permissionOperation(level)) {
				decision.Reason = fmt.Sprintf("this needs the %s level of the permission %s, and the account's level is %s", level,
					ManageServiceAccounts, p.account.Level)
			}
		}
	}
	return decision
}

// permissionOperation returns the operation that groups everything that needs a level of [ManageServiceAccounts].
func permissionOperation(level Level) string { return "manage_service_accounts." + level.String() }

func (s ruleSet) decide(entities cedar.EntityGetter, request cedar.Request) Decision {
	return s.explain(cedar.Authorize(s, entities, request))
}

// explain turns Cedar's answer into a Decision.
func (s ruleSet) explain(verdict cedar.Decision, diagnostic cedar.Diagnostic) Decision {
	if len(diagnostic.Errors) > 0 {
		failed := diagnostic.Errors[0]
		return Decision{Code: CodeFailed, Policy: string(failed.PolicyID),
			Reason: "the policy could not be evaluated: " + failed.Message}
	}
	if len(diagnostic.Reasons) == 0 {
		return Decision{Code: CodeNotPermitted, Reason: "no policy permits this call"}
	}
	decided := s.find(string(diagnostic.Reasons[0].PolicyID))
	decision := Decision{Allowed: verdict == cedar.Allow, Policy: decided.id, Reason: decided.reason}
	switch {
	case decision.Allowed:
	case decided.builtIn:
		decision.Code = CodeGuardrail
	default:
		decision.Code = CodePolicy
	}
	return decision
}

// action returns the name of a method's action.
func action(method string) string {
	method = strings.ToUpper(method)
	if methods[method] == "" {
		return "other"
	}
	return method
}

// ruleSet passes policies to Cedar in a fixed order, so that the reported policy is deterministic.
type ruleSet []rule

// All implements cedar.PolicyIterator.
func (s ruleSet) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for i := range s {
			if !yield(cedar.PolicyID(s[i].id), s[i].policy) {
				return
			}
		}
	}
}

func (s ruleSet) find(id string) rule {
	return s[slices.IndexFunc(s, func(r rule) bool { return r.id == id })]
}

// callEntities are the entities of one call.
type callEntities struct{ principal, target, endpoint cedar.Entity }

// Get implements cedar.EntityGetter.
func (c callEntities) Get(uid cedar.EntityUID) (cedar.Entity, bool) {
	switch uid {
	case c.principal.UID:
		return c.principal, true
	case c.endpoint.UID:
		return c.endpoint, true
	case c.target.UID:
		return c.target, true
	}
	entity, ok := actionEntities[uid]
	return entity, ok
}

// connectEntity is the action of connections.
var connectEntity = cedar.Entity{UID: connectAction}

// actionEntities has an entity for each method, with its group as parent.
var actionEntities = func() cedar.EntityMap {
	entities := cedar.EntityMap{}
	for method, group := range methods {
		uid := cedar.NewEntityUID("Action", cedar.String(method))
		entities[uid] = cedar.Entity{UID: uid, Parents: cedar.NewEntityUIDSet(cedar.NewEntityUID("Action",
			cedar.String(group)))}
	}
	return entities
}()

func accountEntity(a Account) (cedar.Entity, error) {
	t, ok := FindAccountType(a.Type)
	if !ok {
		return cedar.Entity{}, fmt.Errorf("unknown account type %q; use one of %s", a.Type, accountTypeNames())
	}
	typeUID := cedar.NewEntityUID("AccountType", cedar.String(t.Name))
	parents := []cedar.EntityUID{typeUID, cedar.NewEntityUID("Business", cedar.String(a.BusinessID))}
	for level := Read; level <= a.Level; level++ {
		parents = append(parents, cedar.NewEntityUID("Permission", cedar.String(permissionID(level))))
	}
	return cedar.Entity{
		UID:     cedar.NewEntityUID("Account", cedar.String(a.ID)),
		Parents: cedar.NewEntityUIDSet(parents...),
		Attributes: cedar.NewRecord(cedar.RecordMap{
			"type":        typeUID,
			"level":       cedar.Long(a.Level),
			"service":     cedar.Boolean(t.Service()),
			"signed_keys": cedar.Boolean(t.SignedKeys),
			"stored_keys": cedar.Boolean(t.StoredKeys),
			"creatable":   cedar.Boolean(t.Creatable),
			"archivable":  cedar.Boolean(t.Archivable),
			"renamable":   cedar.Boolean(t.Renamable),
		}),
	}, nil
}

func endpointEntity(path string, within []string) cedar.Entity {
	parents := make([]cedar.EntityUID, len(within))
	for i, operation := range within {
		parents[i] = cedar.NewEntityUID("Operation", cedar.String(operation))
	}
	return cedar.Entity{
		UID:        cedar.NewEntityUID("Endpoint", cedar.String(path)),
		Parents:    cedar.NewEntityUIDSet(parents...),
		Attributes: cedar.NewRecord(cedar.RecordMap{"path": cedar.String(path)}),
	}
}

func stringSet(values []string) cedar.Set {
	set := make([]cedar.Value, len(values))
	for i, v := range values {
		set[i] = cedar.String(v)
	}
	return cedar.NewSet(set...)
}
