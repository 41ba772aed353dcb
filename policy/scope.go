package policy

import (
	"slices"

	"github.com/cedar-policy/cedar-go"
	stableast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// The principal is known before the first call, and methods are few. So the applicable rules are determined once for
// each method, and a decision evaluates only their conditions on the call itself.

// withoutScope returns a policy without the scope that applicable has already checked.
func withoutScope(p *cedar.Policy) *cedar.Policy {
	tree := *(*ast.Policy)(p.AST())
	tree.Principal, tree.Action = ast.ScopeTypeAll{}, ast.ScopeTypeAll{}
	return cedar.NewPolicyFromAST((*stableast.Policy)(&tree))
}

// applicable returns the rules whose scope matches the principal, by method.
func applicable(rules ruleSet, principal cedar.Entity) map[string]ruleSet {
	byMethod := make(map[string]ruleSet, len(methods))
	for method := range methods {
		action, _ := callEntities{}.Get(cedar.NewEntityUID("Action", cedar.String(method)))
		byMethod[method] = applicableTo(action, rules, principal)
	}
	return byMethod
}

// applicableTo returns the rules whose scope matches the principal and an action.
func applicableTo(action cedar.Entity, rules ruleSet, principal cedar.Entity) (found ruleSet) {
	for _, r := range rules {
		tree := (*ast.Policy)(r.policy.AST())
		if admits(tree.Principal, principal) && admits(tree.Action, action) {
			r.policy = r.bare
			found = append(found, r)
		}
	}
	return found
}

// admits reports, as Cedar does, whether an entity is in a scope. Parents contains all ancestors of an entity.
func admits(scope ast.IsScopeNode, entity cedar.Entity) bool {
	within := func(uid cedar.EntityUID) bool { return uid == entity.UID || entity.Parents.Contains(uid) }
	switch s := scope.(type) {
	case ast.ScopeTypeEq:
		return s.Entity == entity.UID
	case ast.ScopeTypeIn:
		return within(s.Entity)
	case ast.ScopeTypeInSet:
		return slices.ContainsFunc(s.Entities, within)
	case ast.ScopeTypeIs:
		return s.Type == entity.UID.Type
	case ast.ScopeTypeIsIn:
		return s.Type == entity.UID.Type && within(s.Entity)
	}
	return true
}
