-- bury: writes the record of a task whose messages are about to be removed, and
-- gives the right to revoke it, once. The messages are in another place, so that
-- the record comes first: whatever comes back of the task is known by it.
--
-- KEYS[1]  the control hash
-- KEYS[2]  the task's record      KEYS[3]  the sorted set of records
-- ARGV[1]  the caller's epoch
-- ARGV[2]  how long the record lasts at least, ms
-- ARGV[3]  the record's id, its member in KEYS[3]
-- ARGV[4]  the evidence
-- ARGV[5]  '1': asks to revoke
-- ARGV[6]  until when the caller's look at the row is good, by this server's clock,
--          ms; 0: for ever
-- ARGV[7]  n, how many arguments of the record's first fields follow
-- ARGV[8…7+n]  field, value, …
-- then kind, number, …: messages that have been removed since, or 'revoke_heard' and
-- how many workers heard of the revoke. With these the rest is not looked at: what
-- has been done is noted in any case.
--
-- Returns 'stale', 'paused', 'late' or 'held', as remove.lua does; else 'removed', or
-- 'revoke' where the caller is to revoke it now.
--
-- Fields are as remove.lua writes them, and revoked_at (ms), revoke_heard.
local call = redis.call
local first = 8 + tonumber(ARGV[7])
if first <= #ARGV then
  for i = first, #ARGV, 2 do
    call(ARGV[i] == 'revoke_heard' and 'HSET' or 'HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1])
  end
  if call('PTTL', KEYS[2]) < 0 then
    call('PEXPIRE', KEYS[2], ARGV[2])
  end
  return 'removed'
end

local control = call('HMGET', KEYS[1], 'epoch', 'paused')
if control[1] ~= ARGV[1] then
  return 'stale'
end
if control[2] then
  return 'paused'
end
local record = call('HMGET', KEYS[2], 'evidence', 'hold_until', 'revoked_at')
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local good = tonumber(ARGV[6])
if good > 0 and now > good then
  return 'late'
end
if record[2] and tonumber(record[2]) > now then
  return 'held'
end

local text = string.format('%.0f', now)
local fields
if record[1] and record[1] ~= 'expired' then -- which told nothing of a row (expire.lua)
  fields = { 'again_at', text, 'evidence', ARGV[4] == 'deleted' and ARGV[4] or record[1] }
else
  fields = { 'removed_at', text, 'evidence', ARGV[4], unpack(ARGV, 8, first - 1) }
end
local answer = 'removed'
if ARGV[5] == '1' and not record[3] then
  answer = 'revoke'
  fields[#fields + 1], fields[#fields + 2] = 'revoked_at', text
end
call('HSET', KEYS[2], unpack(fields))
if record[1] then
  call('HDEL', KEYS[2], 'revived_at')
end
if call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then
  call('PEXPIRE', KEYS[2], ARGV[2])
end
call('ZADD', KEYS[3], text, ARGV[3])
return answer
