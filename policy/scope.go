package policy

import (
	"slices"

	"github.com/cedar-policy/cedar-go"
	stableast "github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/x/exp/ast"
)

// The principal of an engine's calls is known before the first call, and there are few methods. So which rules can apply is
// found once for each method, and a decision evaluates only what those rules say about the call itself.

// withoutScope is a policy that leaves out what applies has decided.
func withoutScope(p *cedar.Policy) *cedar.Policy {
	tree := *(*ast.Policy)(p.AST())
	tree.Principal, tree.Action = ast.ScopeTypeAll{}, ast.ScopeTypeAll{}
	return cedar.NewPolicyFromAST((*stableast.Policy)(&tree))
}

// applicable are the rules whose scope admits the principal, by method.
func applicable(rules ruleSet, principal cedar.Entity) map[string]ruleSet {
	byMethod := make(map[string]ruleSet, len(methods))
	for method := range methods {
		action, _ := callEntities{}.Get(cedar.NewEntityUID("Action", cedar.String(method)))
		for _, r := range rules {
			tree := (*ast.Policy)(r.policy.AST())
			if admits(tree.Principal, principal) && admits(tree.Action, action) {
				r.policy = r.bare
				byMethod[method] = append(byMethod[method], r)
			}
		}
	}
	return byMethod
}

// admits decides as Cedar does whether an entity is in a scope. The parents of an entity are all of its ancestors here.
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
