package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/kizen/kizen-sidecar/internal/exit"
	"github.com/kizen/kizen-sidecar/internal/revoke"
	"github.com/kizen/kizen-sidecar/internal/terminal"
	"github.com/kizen/kizen-sidecar/minter"
)

// signingKeysVariable contains the keys themselves. It has no flag, because keys must not be on a command line.
const signingKeysVariable = "KIZEN_SIGNING_KEYS"

// keysCommand is kizen-sidecar keys.
type keysCommand struct {
	Generate keysGenerateCommand `cmd:"" help:"Generate the first key of a key set."`
	List     keysListCommand     `cmd:"" help:"List the keys of a key set."`
	Rotate   keysRotateCommand   `cmd:"" help:"Generate a new current key, and remove keys that no longer verify anything."`
	JWKS     keysJWKSCommand     `cmd:"" name:"jwks" help:"Print the public keys as a JWK set."`
	Revoke   keysRevokeCommand   `cmd:"" help:"Revoke signed keys in Redis, or suspend an account."`
}

// keySetFlags name the source of the signing keys.
type keySetFlags struct {
	Keys string `help:"File or directory of signing keys (PEM or JWK). Default: the keys in KIZEN_SIGNING_KEYS, or a key pair for the lifetime of this process." placeholder:"PATH" group:"Keys"`
}

// configured reads the key set that the flag or the environment names; nil if neither does.
func (f keySetFlags) configured() (*minter.KeySet, error) {
	config := minter.KeySetConfig{Path: f.Keys}
	if config.Path == "" {
		config.Text = minter.NewToken(os.Getenv(signingKeysVariable))
	}
	if config.Path == "" && config.Text.Reveal() == "" {
		return nil, nil
	}
	keys, err := minter.LoadKeySet(config)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.Usagef("there are no keys at %q; generate one with kizen-sidecar keys generate --keys %[1]s",
			config.Path)
	}
	if err != nil {
		return nil, exit.WrongUsage(err)
	}
	return keys, nil
}

// open returns the configured key set, or a key pair of this process if none is configured; then own is true.
func (f keySetFlags) open() (keys *minter.KeySet, own bool, err error) {
	if keys, err = f.configured(); keys != nil || err != nil {
		return keys, false, err
	}
	keys, err = minter.GenerateKeySet()
	return keys, true, err
}

// keysGenerateCommand is kizen-sidecar keys generate.
type keysGenerateCommand struct {
	Keys    string `help:"Directory to write the key to. Default: print the private key as a JWK." placeholder:"DIR"`
	Sealing bool   `help:"Generate a key that seals stored keys instead of a signing key."`
}

// Help is the long text of kizen-sidecar keys generate --help.
func (keysGenerateCommand) Help() string {
	return `Generates an Ed25519 signing key. A directory that already has one is refused; use keys rotate.

Examples:
  kizen-sidecar keys generate --keys /etc/kizen/keys
  kizen-sidecar keys generate | vault kv put secret/kizen signing=-`
}

// Run is called by kong.
func (c *keysGenerateCommand) Run(app *app) error {
	if c.Keys != "" && minter.HasKey(c.Keys, c.Sealing) {
		return exit.Usagef("%q already has such a key; use kizen-sidecar keys rotate", c.Keys)
	}
	key, err := newKey(c.Sealing, time.Now())
	if err != nil {
		return err
	}
	if c.Keys == "" {
		_, err = fmt.Fprintln(app.stdout, key.JWK().Reveal())
		return err
	}
	if err := minter.WriteKey(c.Keys, key); err != nil {
		return err
	}
	_, err = fmt.Fprintln(app.stdout, key.ID)
	return err
}

func newKey(sealing bool, from time.Time) (minter.NewKey, error) {
	if sealing {
		return minter.NewSealingKey(from)
	}
	return minter.NewSigningKey(from)
}

// keysRotateCommand is kizen-sidecar keys rotate.
type keysRotateCommand struct {
	Keys    string        `required:"" help:"Directory of the keys." placeholder:"DIR"`
	Delay   time.Duration `help:"How long the new key is published before it signs: the time until every reader has the file or the JWK set." default:"0s" least:"0s" placeholder:"DURATION"`
	Sealing bool          `help:"Rotate the key that seals stored keys instead of the signing key."`
}

// Help is the long text of kizen-sidecar keys rotate --help.
func (keysRotateCommand) Help() string {
	return `Writes a new key and prints its id. The old key verifies until the last key that it can have signed has expired; a later rotation removes its file. Running processes detect the new key by themselves.

Examples:
  kizen-sidecar keys rotate --keys /etc/kizen/keys
  kizen-sidecar keys rotate --keys /etc/kizen/keys --delay 10m`
}

// Run is called by kong.
func (c *keysRotateCommand) Run(app *app) error {
	if !minter.HasKey(c.Keys, c.Sealing) {
		return exit.Usagef("%q has no such key yet; use kizen-sidecar keys generate", c.Keys)
	}
	if c.Sealing && c.Delay > 0 {
		return exit.Usagef("a sealing key is used at once; omit --delay")
	}
	key, err := newKey(c.Sealing, time.Now().Add(c.Delay))
	if err != nil {
		return err
	}
	if err := minter.WriteKey(c.Keys, key); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(app.stdout, key.ID); err != nil {
		return err
	}
	removed, err := minter.PruneKeys(c.Keys, time.Now())
	for _, id := range removed {
		app.log.Info("removed a key that no longer verifies anything", "kid", id)
	}
	return err
}

// givenKeys is a key set that must exist.
type givenKeys struct {
	Keys string `help:"File or directory of keys (PEM or JWK). Default: the keys in KIZEN_SIGNING_KEYS." placeholder:"PATH"`
}

// read reads the key set.
func (f givenKeys) read() (*minter.KeySet, error) {
	keys, err := keySetFlags(f).configured()
	if keys == nil && err == nil {
		return nil, exit.Usagef("no keys given; name their file or directory with --keys")
	}
	return keys, err
}

// keysListCommand is kizen-sidecar keys list.
type keysListCommand struct {
	givenKeys
	JSON bool `help:"Print a JSON array."`
}

// Help is the long text of kizen-sidecar keys list --help.
func (keysListCommand) Help() string {
	return `Shows the purpose of every key, its start, and the time until which it verifies. It never shows a private part.

Examples:
  kizen-sidecar keys list --keys /etc/kizen/keys`
}

// Run is called by kong.
func (c *keysListCommand) Run(app *app) error {
	keys, err := c.read()
	if err != nil {
		return err
	}
	if c.JSON {
		return terminal.PrintJSON(app.stdout, keys.List())
	}
	rows := [][]string{{"KID", "USE", "CURRENT", "FROM", "UNTIL"}}
	for _, key := range keys.List() {
		current := ""
		if key.Current {
			current = "yes"
		}
		rows = append(rows, []string{key.ID, key.Use, current, terminal.Time(key.From), terminal.Time(key.Until)})
	}
	return terminal.Table(app.stdout, "", rows)
}

// keysJWKSCommand is kizen-sidecar keys jwks.
type keysJWKSCommand struct {
	givenKeys
}

// Help is the long text of kizen-sidecar keys jwks --help.
func (keysJWKSCommand) Help() string {
	return `Prints the public keys for verifiers, as the platform serves them at /.well-known/jwks.json (RFC 7517), without sealing keys.

Examples:
  kizen-sidecar keys jwks --keys /etc/kizen/keys >jwks.json`
}

// Run is called by kong.
func (c *keysJWKSCommand) Run(app *app) error {
	keys, err := c.read()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(keys.List(), func(key minter.KeyInfo) bool { return key.Use != "seal" }) {
		return exit.Nothingf("it contains no signing key, so there is no public key to print; generate one with kizen-sidecar keys generate")
	}
	set, err := keys.JWKS()
	if err != nil {
		return err
	}
	return terminal.PrintJSON(app.stdout, json.RawMessage(set))
}

// keysRevokeCommand is kizen-sidecar keys revoke.
type keysRevokeCommand struct {
	redisFlags
	BusinessID string `help:"Business of the key, execution or account; required with each of them." placeholder:"ID"`
	Key        string `help:"Revoke the signed key with this id (its jti)." placeholder:"ID" env:"-" xor:"what" required:""`
	Execution  string `help:"Revoke every key of this execution." placeholder:"ID" env:"-" xor:"what" required:""`
	Account    string `help:"Revoke every signed key of this account." placeholder:"ID" env:"-" xor:"what" required:""`
	Business   string `help:"Revoke every signed key of this business." placeholder:"ID" env:"-" xor:"what" required:""`
	Suspend    string `help:"Revoke every key of this account, including its stored keys, and mint no new ones until it is resumed." placeholder:"ACCOUNT" env:"-" xor:"what" required:""`
	Resume     string `help:"Lift an operator's suspension of this account, but no other suspension. Its earlier signed keys stay revoked." placeholder:"ACCOUNT" env:"-" xor:"what" required:""`
}

// Help is the long text of kizen-sidecar keys revoke --help.
func (keysRevokeCommand) Help() string {
	return `Takes effect on the next request with one of the keys, and prints how many valid keys it revoked. The exit code is 1 if it found none.

Examples:
  kizen-sidecar keys revoke --execution 6f9d... --business-id b1 --redis-url redis://redis:6379
  kizen-sidecar keys revoke --suspend account-7 --business-id b1`
}

// Run is called by kong.
func (c *keysRevokeCommand) Run(ctx context.Context, app *app) error {
	if c.Business == "" && c.BusinessID == "" {
		return exit.Usagef("no business given; name the one that the id belongs to with --business-id (steps run without one have %s)", developmentBusiness)
	}
	client, err := c.redisFlags.require()
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	done, err := revoke.Target{
		BusinessID: c.BusinessID, Key: c.Key, Execution: c.Execution, Account: c.Account, Business: c.Business,
		Suspend: c.Suspend, Resume: c.Resume,
	}.Do(ctx, client, func(err error) {
		fmt.Fprintf(app.stderr, "warning: this took effect, but could not be added to the account's timeline: %v\n",
			err)
	})
	if err == nil {
		_, err = fmt.Fprintln(app.stdout, done)
	}
	return err
}
