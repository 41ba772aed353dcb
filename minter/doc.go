// Package minter issues the credentials that Kizen's API accepts from service accounts, and checks them.
//
// A signed key belongs to one execution. It is a JWT (RFC 7519) signed with Ed25519 (RFC 8037), and it is valid only
// while its signature holds and its record is in Redis. The two functions to start from are [Minter.Mint], or
// [Minter.Lease] for a key that outlives its own lifetime, and [Verifier.Verify].
//
// Redis holds records, never tokens, so a reader of Redis learns no key. While Redis is unreachable, nothing is minted
// and no key is valid.
package minter
