package minter

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/kizen/kizen-sidecar/internal/routine"
)

// Follow reloads the set when its files change, as [KeySet.Watch] does, and on SIGHUP, which then no longer ends the
// process. It calls report after each reload, with nil on success, and unwatched once if it cannot watch the files. It
// runs until ctx ends or until stop is called; stop waits for it to end.
func (s *KeySet) Follow(ctx context.Context, report, unwatched func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var following routine.Group
	following.Go(func() {
		if err := s.Watch(ctx, report); err != nil {
			unwatched(err)
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
