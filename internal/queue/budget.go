package queue

import "sync"

// Budget bounds how much memory businesses take for something. Beyond the limit a business may hold no more than its share,
// the limit divided by the businesses that hold some: who takes much cannot keep others from taking any. It is safe for
// concurrent use.
type Budget struct {
	limit int64 // in bytes

	mu    sync.Mutex
	total int64
	held  map[string]int64 // by business
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit, held: map[string]int64{}} }

// Take reports whether a business may have size bytes more, and counts them. What is taken must be given back.
func (b *Budget) Take(business string, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	sharing := int64(len(b.held))
	if _, holds := b.held[business]; !holds {
		sharing++
	}
	if b.total+size > b.limit && b.held[business]+size > b.limit/sharing {
		return false
	}
	b.total += size
	b.held[business] += size
	return true
}

// Give undoes a Take.
func (b *Budget) Give(business string, size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total -= size
	if b.held[business] -= size; b.held[business] == 0 {
		delete(b.held, business)
	}
}

// Held is how much a business holds, in bytes.
func (b *Budget) Held(business string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[business]
}

// Taken is how much is taken altogether.
func (b *Budget) Taken() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}
