package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Durability selects what Redis must confirm for two writes: the start, before the step's code begins, and the end,
// before a callback reports it.
type Durability string

const (
	// DurabilityMemory waits only for Redis's reply.
	DurabilityMemory Durability = "memory"
	// DurabilityDisk waits until the master has the write on disk (WAITAOF, Redis 7.2 with appendonly).
	DurabilityDisk Durability = "disk"
	// DurabilityReplica waits until one replica has the write (WAIT).
	DurabilityReplica Durability = "replica"
)

// waits reports whether Redis must confirm writes.
func (d Durability) waits() bool { return d != "" && d != DurabilityMemory }

// durableLimit bounds the wait. It is generous, because appendfsync everysec takes up to two seconds.
const durableLimit = 5 * time.Second

// errNotDurable prevents a step's code from starting.
var errNotDurable = errors.New("redis did not confirm in time that the execution's record is durable")

// command confirms the writes of a connection; all numbers in its reply must be at least one.
func (d Durability) command() []any {
	if d == DurabilityDisk {
		return []any{"WAITAOF", 1, 0, durableLimit.Milliseconds()}
	}
	return []any{"WAIT", 1, durableLimit.Milliseconds()}
}

// run runs a script that returns whether it wrote, and waits on the same connection until the write is durable.
func (d Durability) run(ctx context.Context, client redis.UniversalClient, script *redis.Script, keys []string,
	arguments ...any) (bool, error) {
	if !d.waits() {
		return script.Run(ctx, client, keys, arguments...).Bool()
	}
	node, err := nodeOf(ctx, client, keys[0])
	if err != nil {
		return false, err
	}
	// EVAL, not EVALSHA: in a pipeline an unknown script could not be loaded in time.
	pipe := node.Pipeline()
	wrote := script.Eval(ctx, pipe, keys, arguments...)
	confirmed := pipe.Do(ctx, d.command()...)
	if _, err := pipe.Exec(ctx); err != nil {
		return false, fmt.Errorf("%w: %w", errNotDurable, err)
	}
	if ok, err := wrote.Bool(); err != nil || !ok {
		return false, err
	}
	return true, d.confirm(confirmed)
}

// confirm reads the reply to command: one number, or two, of which the first counts the master.
func (d Durability) confirm(answer *redis.Cmd) error {
	first := answer.Val()
	if list, several := first.([]any); several && len(list) > 0 {
		first = list[0]
	}
	if n, _ := first.(int64); n < 1 {
		return errNotDurable
	}
	return nil
}

// Check reports whether Redis offers this durability.
func (d Durability) Check(ctx context.Context, client redis.UniversalClient) error {
	if !d.waits() {
		return nil
	}
	node, err := nodeOf(ctx, client, "kizen:fleet")
	if err != nil {
		return err
	}
	err = node.Do(ctx, "WAITAOF", 1, 0, 1).Err() // Redis answers a request for 0 copies even without appendonly
	if d == DurabilityReplica {
		err = node.Do(ctx, "WAIT", 0, 1).Err()
	}
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), "unknown command"):
		return errors.New(`--start-durability=disk needs WAITAOF of Redis 7.2 or newer; use "appendfsync always" in an older one, and leave the flag out`)
	case strings.Contains(err.Error(), "appendonly"):
		return errors.New("--start-durability=disk needs a Redis with appendonly yes")
	}
	return fmt.Errorf("--start-durability=%s: %w", d, err)
}

// nodeOf returns the node that stores a key.
func nodeOf(ctx context.Context, client redis.UniversalClient, key string) (redis.UniversalClient, error) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		return client, nil
	}
	return cluster.MasterForKey(ctx, key)
}
