package minter

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// Follow reloads the set when its files change, as [KeySet.Watch] does, and on SIGHUP, which no longer ends the process from
// here on. report is told of each reload, with nil where it worked; unseen is told once if changes of the files cannot be seen.
// It goes on until ctx ends or stop is called, which waits for the end of it.
func (s *KeySet) Follow(ctx context.Context, report, unseen func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var following routine.Group
	following.Go(func() {
		if err := s.Watch(ctx, report); err != nil {
			unseen(err)
		}
	})
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	following.Go(func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				report(s.Reload())
			}
		}
	})
	return func() {
		cancel()
		following.Wait()
	}
}
