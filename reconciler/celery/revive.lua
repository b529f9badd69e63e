-- revive: the row of a record exists (again): a deletion, and an operator's hold, from
-- before it was looked at are over, and so is the right to revoke it where nobody has noted that it was used.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the record of the subject, or that of its messages (pull.lua)
-- ARGV[1]  the caller's epoch
-- ARGV[2]  when the caller read the row, by this server's clock, ms
--
-- Returns 'stale' (another leader, or no control hash), 'late' (what the record tells
-- came after that look): nothing was changed; else 'revived', or 'none' where there is
-- no record.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return 'stale'
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  return 'none'
end
local looked = tonumber(ARGV[2])
local record = redis.call('HMGET', KEYS[2], 'evidence', 'removed_at', 'again_at', 'restored_at', 'revoke_heard')
for i = 2, 4 do
  if record[i] and tonumber(record[i]) >= looked then
    return 'late'
  end
end
redis.call('HDEL', KEYS[2], 'hold_until')
if not record[5] then
  redis.call('HDEL', KEYS[2], 'revoked_at') -- granted, and not known to have been published
end
if record[1] then
  redis.call('HSET', KEYS[2], 'revived_at', ARGV[2])
end
return 'revived'
