-- KEYS: the record, then its scopes (business, account, execution), then the public key where one is published.
-- ARGV: the record, its lifetime in milliseconds, a generation for a scope that has none, the public key.

-- keep makes sure that a key exists and lives at least as long as the record, and returns what it holds.
local function keep(key, value)
  local held = redis.call('GET', key)
  if not held then
    redis.call('SET', key, value, 'PX', ARGV[2])
    return value
  end
  local left = redis.call('PTTL', key)
  if left >= 0 and left < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', key, ARGV[2])
  end
  return held
end

local generations = {}
for i = 2, 4 do
  generations[i - 1] = keep(KEYS[i], ARGV[3])
  if generations[i - 1] == 'suspended' then
    return 'suspended'
  end
end
if KEYS[5] then
  keep(KEYS[5], ARGV[4])
end
redis.call('SET', KEYS[1], table.concat(generations, '.') .. ' ' .. ARGV[1], 'PX', ARGV[2])
return 'minted'
