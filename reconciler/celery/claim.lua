-- claim: the next leader's epoch, higher than any before.
--
-- KEYS[1]  the control hash      ARGV[1]  one that is known to have been used
--
-- Returns the new epoch, as text. Decimal texts are compared by length and then by
-- digits, since Lua's numbers are exact to 2^53 only.
local epoch = redis.call('HGET', KEYS[1], 'epoch') or '0'
if #epoch < #ARGV[1] or #epoch == #ARGV[1] and epoch < ARGV[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
end
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
return redis.call('HGET', KEYS[1], 'epoch')
