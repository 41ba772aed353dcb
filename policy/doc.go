// Package policy decides what an account may do, by its type, its permission level and the operator's rules.
//
// Rules are Cedar policies (https://docs.cedarpolicy.com) over the schema in schema.cedarschema: the principal is an
// account, the action an HTTP method, the resource an endpoint, which belongs to the operations that operations.yaml
// maps it to. Guardrails are forbid policies in the binary; in Cedar a forbid always wins, so no rule from a file can
// override one.
//
// [ForCalls] returns the engine for outgoing calls, [ForPlatform] the engine with which a platform decides on incoming
// calls. Both decide on the canonical path of a call, see [Canonical], and refuse a call that they cannot decide.
package policy
