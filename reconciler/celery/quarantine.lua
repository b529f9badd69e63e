-- What drain.lua and drain_unacked.lua share; put before them by Go.
--
-- KEYS[1]  the control hash       KEYS[2]  the place: a list, or the hash of unacked messages
-- KEYS[3]  the purge: orphanwatch:purged:<id>, of one place and one list
-- KEYS[4]  the index of purges: a sorted set, id by the time that it began, ms
-- KEYS[5]  the piece: orphanwatch:purged:<id>:<n>
-- ARGV[1]  the caller's epoch, 0 where the control hash has none
-- ARGV[2]  quarantine, ms; 0: nothing is kept
-- ARGV[3]  <id>   ARGV[4]  <n>, from 0   ARGV[5]  when the purge began, ms
-- ARGV[6]  kind: messages or unacked   ARGV[7]  queue   ARGV[8]  list   ARGV[9]  trigger
--
-- A purge is a hash: queue, list, kind, trigger, at, pieces (how many there were)
-- and messages (how many are kept). Its pieces are lists, each of what one call has
-- taken out, in the order of the place: the one to be popped first at the end, and
-- of all pieces in the first. Each expires for itself, which is a short call for
-- Redis however many there are.
local call = redis.call

-- refusal is why nothing may be taken out now, nil if it may.
local function refusal()
  local control = call('HMGET', KEYS[1], 'epoch', 'paused')
  if (control[1] or '0') ~= ARGV[1] then
    return 'stale'
  end
  return control[2] and 'paused' or nil
end

-- keep puts elements in the piece, the last of them first. It is called before they
-- are taken out, so that a full memory stops both.
local function keep(elements)
  local n = #elements
  if ARGV[2] == '0' or n == 0 then
    return
  end
  for from = n, 1, -500 do
    local part = {}
    for i = from, math.max(1, from - 499), -1 do
      part[#part + 1] = elements[i]
    end
    call('RPUSH', KEYS[5], unpack(part))
  end
  call('PEXPIRE', KEYS[5], ARGV[2])
  call('HSET', KEYS[3], 'queue', ARGV[7], 'list', ARGV[8], 'kind', ARGV[6], 'trigger', ARGV[9],
    'at', ARGV[5], 'pieces', ARGV[4] + 1)
  call('HINCRBY', KEYS[3], 'messages', n)
  call('PEXPIRE', KEYS[3], ARGV[2])
  call('ZADD', KEYS[4], ARGV[5], ARGV[3])
  if call('PTTL', KEYS[4]) < tonumber(ARGV[2]) then
    call('PEXPIRE', KEYS[4], ARGV[2])
  end
end
