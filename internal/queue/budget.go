package queue

import "sync"

// Budget bounds the memory that businesses use. Once the limit is reached, a business may use no more than its share:
// the limit divided by the number of businesses that use some. So one heavy user cannot keep others out. It is safe
// for concurrent use.
type Budget struct {
	limit int64 // in bytes

	mu    sync.Mutex
	total int64
	held  map[string]int64 // by business
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit, held: map[string]int64{}} }

// Take reserves size bytes for a business and reports whether it could. The caller returns them with [Budget.Give].
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

// Held returns how much a business has reserved, in bytes.
func (b *Budget) Held(business string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[business]
}
